"""The words of tasks.py: how people ask, what there is to spell, and the few sentences of small talk. No code."""

# How arithmetic is asked for; {} is "12 + 30".
ASK = ("What is {}?", "What is {}?", "what is {}", "what's {}?", "What's {}?", "{}", "{}?", "{}=", "{} =", "{} = ?",
       "Compute {}.", "compute {}", "Calculate {}.", "calculate {}", "How much is {}?", "how much is {}",
       "Work out {}.", "Can you work out {}?", "Please compute {}.", "Tell me {}.", "Solve {}", "Hi, what is {}?",
       "Hello! What is {}?", "Do you know what {} is?", "I need {}.", "Could you calculate {} for me?")

# Letters: {t} is the word, {l} a letter, {k} "letters" or "digits".
COUNT = ("How many {l}'s are in {t}?", "How many {l}'s are in {t}?", "how many {l}'s are in {t}",
         "How many {l}'s are in the word {t}?", "how many {l} in {t}", "How many {l}s are in {t}?",
         'How many "{l}" are there in {t}?', "How many times does the letter {l} appear in {t}?",
         "Count the letter {l} in {t}.", "Count the {l}'s in {t}.", "How often is {l} in {t}?",
         "how many times does {l} occur in {t}?", "How many letters {l} are there in {t}?")
REVERSE = ("Reverse {}.", "reverse {}", "What is {} backwards?", "Write {} backwards.", "Turn {} around.")
REVERSE_WORD = ("Reverse the word {}.", "Reverse the letters of {}.", "Spell {} backwards.", "spell {} backwards",
                "what is {} spelled backwards?", "How do you spell {} backwards?")
REVERSE_NUMBER = ("Reverse the digits of {}.", "Reverse the number {}.")
SORT = ("Sort {t}.", "sort {t}", "Sort the {k} of {t}.", "sort the {k} of {t}", "Sort the {k} in {t}.",
        "Put the {k} of {t} in order.", "What is {t} with its {k} sorted?")

# To be spelled, counted and turned around.
WORDS = tuple("""
strawberry raspberry blueberry banana orange cherry pepper coffee butter cheese cookie noodle lettuce tomato potato
avocado pineapple mango papaya walnut almond pumpkin carrot spinach broccoli cucumber mushroom onion garlic ginger
vanilla chocolate sandwich pancake waffle sausage chicken turkey salmon lobster dinner supper breakfast kitchen bottle
kettle saucer platter elephant giraffe kangaroo squirrel rabbit hippo parrot penguin buffalo cheetah leopard panther
gorilla monkey donkey zebra butterfly grasshopper beetle spider hornet mosquito sparrow pigeon seagull raccoon opossum
otter weasel badger hedgehog mississippi tennessee massachusetts california alaska hawaii london paris berlin madrid
lisbon vienna athens moscow bookkeeper committee accommodation success address possess assess access process balloon
cotton ribbon button mitten kitten puppy bunny happy silly funny merry jelly belly valley alley trolley volley hobby
lobby bubble rubble pebble middle puddle giggle wiggle juggle struggle apple ripple triple people little battle cattle
rattle settle bottle turtle castle whistle mountain river forest desert island ocean beach harbor bridge tunnel tower
palace temple church school college library museum window mirror carpet curtain pillow blanket mattress cupboard
drawer ladder hammer scissors needle thread leather velvet doctor nurse teacher farmer baker butcher soldier sailor
captain engineer scientist professor president governor secretary yellow purple crimson scarlet violet silver golden
bronze copper diamond emerald sapphire crystal marble granite pebbles summer winter autumn spring monsoon thunder
lightning hurricane tornado blizzard rainbow sunset sunrise midnight afternoon letter written spelling grammar
sentence paragraph chapter dictionary alphabet vowel syllable rhythm language parallel computer keyboard printer
monitor program function variable compiler network internet password database algorithm football baseball tennis
soccer hockey cricket swimming running jumping skiing skating cycling wrestling boxing racing guitar violin trumpet
clarinet drummer orchestra symphony concert melody harmony rhythmically stressed desserts level radar racecar noon
civic kayak rotor refer banner hello world queue quiz jazz fizz buzz pizza puzzle dazzle drizzle muzzle
""".split())

COMMON = tuple("""
are the there many times does word letter letters how what which is in of and so back backwards spell reverse spelled
write count occur appear often today day days before after from week has have buys gives gets boxes bags with each now
left loses larger smaller bigger greater number one less than multiply multiplied product divide divided share among
plus minus compute calculate please tell work out can you could for me need solve know sum difference take away
subtract add between get go when into check again yes no mod remainder language model trained knowledge cutoff current
date valid channels channel must included every message instructions user says greets asks thanks small from scratch
arithmetic nothing too that only do decimals apples books pens cards eggs coins marbles stickers oranges cookies about
turn around write your help what poem story explain translate mean joke weather color like make fewer
""".split())

NAMES = ("Tom", "Anna", "Ben", "Maria", "Sam", "Lily", "Omar", "Nina", "Leo", "Eva")
THINGS = ("apples", "books", "pens", "cards", "eggs", "coins", "marbles", "stickers", "oranges", "cookies")

# Now and then the developer message says one of these.
INSTRUCTIONS = ("Be brief.", "You are a helpful assistant.", "Answer the question.", "Always be polite.",
                "Answer in English.", "You are a calculator.", "Think carefully.", "Help the user with arithmetic.",
                "Keep your answers short.")

# Thoughts where a calculator is offered: medium effort, and what high effort adds.
TOOL = ("I have a calculator.", "It does not make mistakes, so I give it the whole expression and wait.")

# Small talk: (answer, thought), and what people type.
HELLO = ("Hello! Ask me a sum, a product, or how many letters are in a word.", "The user greets me.")
WELCOME = ("You are welcome!", "The user thanks me.")
BYE = ("Goodbye!", "The user says goodbye.")
WHO = ("I am a very small gpt-oss, trained from scratch on arithmetic and letters.", "The user asks who I am.")
CAN = ("I can add, subtract, multiply and divide, compare decimals, count or reverse the letters of a word, and "
       "count weekdays. Raise my reasoning effort and I make fewer mistakes.", "The user asks what I can do.")
FINE = ("I am fine, thank you! Do you have a problem for me?", "The user asks how I am.")
CANNOT = ("I am too small to know that. Ask me a sum, a product, or about the letters of a word.",
          "This is not something I learned.")
FIXED = (
    (HELLO, ("Hi", "hi", "Hello", "Hello!", "hello", "Hey", "hey", "Hi!", "Hi there", "Good morning",
             "Good evening!", "hey there", "Hello there!", "yo", "Greetings", "Hi, how is it going",
             "good afternoon", "hallo", "Hey!")),
    (WELCOME, ("Thanks", "thanks", "Thank you", "Thank you!", "thanks!", "thx", "Great, thanks",
               "Thank you very much", "cool", "ok thanks", "Nice", "ok", "great", "Well done", "good job",
               "perfect", "awesome")),
    (BYE, ("Bye", "bye", "Goodbye", "See you", "bye!", "Good night", "see you later")),
    (WHO, ("Who are you?", "who are you", "What are you?", "what is your name?", "What's your name?",
           "Are you ChatGPT?", "Tell me about yourself.", "are you a human", "Who made you?",
           "Which model are you?", "are you gpt-oss?")),
    (CAN, ("What can you do?", "what can you do", "Help", "help", "What do you know?", "How can you help me?",
           "help me", "What are you good at?", "what can I ask you?", "What problems can you solve?",
           "can you help me?")),
    (FINE, ("How are you?", "how are you", "How are you doing?", "How do you feel?", "What's up?")),
)
OPEN = ("What is the capital of {}?", "Who is {}?", "Write a poem about {}.", "Tell me a story about a {}.",
        "Explain {}.", "Translate {} to French.", "What does {} mean?", "Tell me a joke.",
        "What is the weather in {}?", "who invented the {}?", "Where is {}?", "Write a Python function for {}.",
        "Why is the sky blue?", "How do I cook {}?", "What is a {}?", "Give me a recipe for {}.",
        "what is the meaning of life?", "When was {} born?", "How old is {}?", "Do you like {}?", "Summarize {}.",
        "What is the best {}?", "Draw a {}.", "who won the {}?", "write code for {}", "What is {}?",
        "Can you explain {} to me?", "Tell me about {}.", "How does a {} work?", "What color is a {}?",
        "Why do {} exist?")

OPEN_NUMBER = ("What is the square root of {}?", "Is {} a prime number?", "What is {} in Roman numerals?",
               "what is {}^2", "What happened in {}?", "Convert {} km to miles.", "{} factorial",
               "What is {}% of 80?", "What is log({})?")

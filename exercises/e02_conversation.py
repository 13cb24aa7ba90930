"""Chapter 2, a conversation: docs/02-a-conversation.md

Check what you wrote: python exercises/check.py render"""


def render(messages, tokenizer):
    """The token ids of a conversation in the Harmony format, up to where the assistant's next message begins.

    messages: list of harmony.Message with role, content (a str), and where they apply channel, recipient, content_type
    and name (else None); only a tool has a name here. tokenizer: tokenizer.encode(text) -> list of ids in which no
    special token can occur; tokenizer.special_tokens["<|start|>"] is the id of a special token. -> list of ids.

    A message, where [x] is the special token <|x|> and all else is text that is encoded piece by piece:

        [start] role  " to=RECIPIENT"  [channel] CHANNEL  " " [constrain] TYPE  [message] CONTENT [end]

    - A message of role "tool" has its name ("functions.weather") in place of the role.
    - Recipient, channel and content type are left out where they are None. The recipient "all" is left out too. A
      content_type is "<|constrain|>TYPE".
    - A message of the assistant that has a recipient is a call, and ends with [call] instead of [end].
    - If the last message of the assistant is on channel "final", what is on channel "analysis" before the first
      final message is left out, whoever said it: the model does not see old thoughts again. Otherwise all messages
      stay. (This is the library's rule. That of OpenAI's guide is another one.)
    - After the last message: [start] and the text "assistant".

    Hint: first drop messages, then render those that are left in a loop. " to=RECIPIENT" is one text to encode."""
    raise NotImplementedError

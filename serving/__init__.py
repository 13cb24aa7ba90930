"""How an answer becomes the events of OpenAI's APIs.

    body --read--> Request --answer--> Piece ... End --> a Form --> events, or one JSON object
                   request.py  turn.py                    responses.py, chat.py, completions.py

The left half runs wherever a request is read, `answer` in the thread that owns the engine. A Form is told the pieces as
they come. It knows no model, no thread and no HTTP, so what it makes of a reply can be seen by giving it a list.

    Form(request, name)     begin() -> events           name: the model's, in the reply
                            feed(piece) -> events       also of the End, which is the last piece
                            waiting() -> text           what is sent while nothing comes
                            failed(message) -> events   the reply breaks off
                            whole() -> a JSON object    the reply in one piece
                            text(event) -> str          an event as it is sent; `last`: what is sent after all events
"""

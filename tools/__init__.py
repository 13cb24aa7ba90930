"""What the model may call. A tool is an object with

    namespace                   what the model is shown of it, a harmony.Namespace
    call(recipient, content)    what the model is told, as text, within a time limit of the tool's own; or it raises an
                                exception whose text is one sentence, which the model is told instead
    close()                     ends the processes that it has started
"""

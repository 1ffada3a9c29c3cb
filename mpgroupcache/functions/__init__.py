"""Functions of any arguments, and to any value: which key a call has, which call a key, and how a value is stored.

- `binding`: the calls of one function. `generating` makes the function that binds their arguments.
- `encoding`: values as keys, and back; `classes` takes objects of an application's classes apart for it.
- `templates`: keys that are texts.
- `codecs`: how the values of one function are stored, as its annotation says, which `returned` finds.
- `formats`: bytes, texts, views, messages, pickles; `packed`: MessagePack; `arrays`: numpy's; `models`: pydantic's.
- `schemas`: types as texts, and what else follows of them. `comparing`: whether a value comes back as it was.
"""

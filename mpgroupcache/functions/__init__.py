"""Functions of any arguments: which key a call has, and which call a key.

- `binding`: the calls of one function. `generating` makes the function that binds their arguments.
- `encoding`: values as keys, and back; `classes` takes objects of an application's classes apart for it.
- `templates`: keys that are texts.
"""

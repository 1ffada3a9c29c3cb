"""How gunicorn runs the example. ``PORT``, ``WEB_CONCURRENCY``, ``WORKER_CLASS`` and ``PRELOAD=1`` change it."""

import os

import mpgroupcache

bind = f"127.0.0.1:{os.environ.get('PORT', '8000')}"
workers = int(os.environ.get("WEB_CONCURRENCY", "4"))
worker_class = os.environ.get("WORKER_CLASS", "gthread")  # or sync, gevent; asgi with examples.gunicorn_app.asgi:app
if worker_class == "gthread":
    threads = 8
preload_app = os.environ.get("PRELOAD") == "1"  # harmless: a declared group opens nothing before its first get


def post_worker_init(_worker: object) -> None:
    """Attach to the cache before the first request, which would do it otherwise.

    Not in ``post_fork``: that comes before a gevent worker patches the standard library, and a lock or a thread that
    was made there would block its hub.
    """
    mpgroupcache.connect()

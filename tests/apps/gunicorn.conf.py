"""How tests run gunicorn; what differs from test to test comes on the command line."""

import os

import mpgroupcache

workers = 2
graceful_timeout = 5  # s; gunicorn loses a SIGTERM that meets a worker while it boots, and kills it after this
control_socket_disable = True


def post_worker_init(_worker: object) -> None:
    if os.environ["TEST_EAGER"]:
        mpgroupcache.connect()

"""Peers: the ring, the messages and the wire between hosts, as golang/groupcache has them."""

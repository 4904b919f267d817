"""A whole pool in virtual time: clients, replicas of the router, a store, nodes and bad luck.

Decisions, store and keeper are those of production; only what takes time or talks to a socket is played here.
"""

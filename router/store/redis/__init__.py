"""The store of many replicas: the contract's steps in Lua, inside Redis or Valkey."""

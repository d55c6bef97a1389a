"""The REST API: one file a noun. Every route says through one decorator who may use it (`door.require`)."""

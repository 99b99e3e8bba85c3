"""One agent per node: starts the node's ranks, watches them, exports metrics, and says in the ledger what happened."""

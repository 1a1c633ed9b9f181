"""How long one operator of a given shape takes on a GPU type: GEMMs, attention, experts, all-reduce."""

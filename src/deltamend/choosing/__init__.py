"""Choose a method: compare methods on an update, recommend one, or search for the best by evaluation."""

"""Networks of other libraries, and posterior samples, as epistemic networks."""

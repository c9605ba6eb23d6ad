"""The state machine: state, context and routing, and the builder that joins the nodes."""

"""The state machine: state, context, routing, and the builder that ties the nodes together."""

"""The graph that ``langgraph.json`` loads: no checkpointer, since the server brings its own; pictures for Studio."""

from gems.graph.builder import build_graph

graph = build_graph(thumbnails=128)

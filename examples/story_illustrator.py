"""A story in four scenes, each of them drawn: GEMS as a node of a larger graph.

    python examples/story_illustrator.py "a day in the country" --out story

One node writes the scenes; ``Send`` has all of them drawn at once, each by a run of its own that plans, checks and
refines; the last node lays them out on a page. The graph's state holds references to the images, never pixels.
"""

from __future__ import annotations

import html
import operator
from pathlib import Path
from typing import Annotated, Any

from langchain_core.messages import AIMessage
from langgraph.graph import END, START, StateGraph
from langgraph.types import Send
from offline import arguments, guarded, language_model
from typing_extensions import TypedDict

from gems import ImageStore, build_graph

WRITER = "Write a story in exactly four scenes. Answer with four lines: what a picture of each scene shows, plainly."
SCENES = (
    "a yellow bird above two brown cows",
    "three blue cars behind a striped elephant",
    "a green dog to the left of five red flowers",
    "two white sheep in front of a wooden chair",
)


class Story(TypedDict, total=False):
    """What the graph knows."""

    theme: str
    scenes: list[str]
    drawn: Annotated[list[dict[str, Any]], operator.add]


class Scene(TypedDict):
    """What one branch is given."""

    number: int
    text: str


def build(model: Any, out: Path, settings: dict[str, Any]) -> Any:
    """The graph."""
    gems, images = build_graph(settings=settings), ImageStore()

    def write(story: Story) -> Story:
        lines = model.invoke([("system", WRITER), ("user", story["theme"])]).text.splitlines()
        return {"scenes": [line.strip() for line in lines if line.strip()][:4]}

    def each(story: Story) -> list[Send]:
        return [Send("draw", Scene(number=n, text=text)) for n, text in enumerate(story["scenes"], 1)]

    def draw(scene: Scene) -> Story:
        result = gems.invoke({"prompt": scene["text"]})
        return {"drawn": [{**scene, "image": result["image"], "outcome": result["outcome"]}]}

    def lay_out(story: Story) -> Story:
        out.mkdir(parents=True, exist_ok=True)
        figures = []
        for scene in sorted(story["drawn"], key=lambda scene: scene["number"]):
            if scene["image"] is None:
                continue
            name = f"scene-{scene['number']}.png"
            (out / name).write_bytes(images.read(scene["image"]))
            caption = html.escape(scene["text"])
            picture = f'<img src="{name}" alt="{caption}" width="360">'
            figures.append(f"<figure>{picture}<figcaption>{caption}</figcaption></figure>")
        page = f"<!doctype html><meta charset=utf-8><title>Story</title><h1>{html.escape(story['theme'])}</h1>"
        (out / "story.html").write_text(page + "\n".join(figures), encoding="utf-8")
        return {}

    graph = StateGraph(Story)
    for name, node in (("write", write), ("draw", draw), ("lay_out", lay_out)):
        graph.add_node(name, node)
    graph.add_edge(START, "write")
    graph.add_conditional_edges("write", each, ["draw"])
    graph.add_edge("draw", "lay_out")
    graph.add_edge("lay_out", END)
    return graph.compile()


def main() -> None:
    """Illustrate the theme of the command line."""
    parser = arguments(__doc__)
    parser.add_argument("theme", nargs="?", default="a day in the country")
    parser.add_argument("--out", type=Path, default=Path("story"), help="folder of the page and its images")
    given = parser.parse_args()
    model = language_model(given.mllm, AIMessage("\n".join(SCENES)))
    graph = build(model, given.out, {"seed": given.seed, "max_rounds": 3})
    for update in graph.stream({"theme": given.theme}, stream_mode="updates"):
        for scene in (update.get("draw") or {}).get("drawn", []):
            print(f"scene {scene['number']}, {scene['outcome']}: {scene['text']}", flush=True)
    print(f"the story: {given.out / 'story.html'}")


if __name__ == "__main__":
    guarded(main)

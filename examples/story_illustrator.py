"""A story in four illustrated scenes: GEMS as a node of a larger graph.

    python examples/story_illustrator.py "a day in the country" --out story

One node writes the scenes; ``Send`` starts a run for each of them, all at once, which plans, checks and refines; the
last node puts them on a page. The graph's state contains references to the images, never pixels.
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
    """The state of the graph."""

    theme: str
    scenes: list[str]
    pictures: Annotated[list[dict[str, Any]], operator.add]


class Scene(TypedDict):
    """The input of one branch."""

    number: int
    text: str


def build(model: Any, out: Path, settings: dict[str, Any]) -> Any:
    """Build the graph, which writes the page to ``out``."""
    gems, images = build_graph(settings=settings), ImageStore()

    def write(story: Story) -> Story:
        lines = model.invoke([("system", WRITER), ("user", story["theme"])]).text.splitlines()
        return {"scenes": [line.strip() for line in lines if line.strip()][:4]}

    def send_scenes(story: Story) -> list[Send]:
        return [Send("draw", Scene(number=n, text=text)) for n, text in enumerate(story["scenes"], 1)]

    def draw(scene: Scene) -> Story:
        result = gems.invoke({"prompt": scene["text"]})
        return {"pictures": [{**scene, "image": result["image"], "outcome": result["outcome"]}]}

    def lay_out(story: Story) -> Story:
        out.mkdir(parents=True, exist_ok=True)
        figures = []
        for scene in sorted(story["pictures"], key=lambda scene: scene["number"]):
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
    graph.add_conditional_edges("write", send_scenes, ["draw"])
    graph.add_edge("draw", "lay_out")
    graph.add_edge("lay_out", END)
    return graph.compile()


def main() -> None:
    """Illustrate the theme of the command line."""
    parser = arguments(__doc__)
    parser.add_argument("theme", nargs="?", default="a day in the country")
    parser.add_argument("--out", type=Path, default=Path("story"), help="folder of the page and its images")
    args = parser.parse_args()
    model = language_model(args.mllm, AIMessage("\n".join(SCENES)))
    graph = build(model, args.out, {"seed": args.seed, "max_rounds": 3})
    for update in graph.stream({"theme": args.theme}, stream_mode="updates"):
        for scene in (update.get("draw") or {}).get("pictures", []):
            print(f"scene {scene['number']}, {scene['outcome']}: {scene['text']}", flush=True)
    print(f"the story: {args.out / 'story.html'}")


if __name__ == "__main__":
    guarded(main)

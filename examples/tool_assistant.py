"""An assistant that draws: GEMS as a tool of an ordinary tool-calling agent.

    python examples/tool_assistant.py "I need a picture of two red cars and one of a green dog."

The agent decides what to draw, calls the tool as often as it likes, several times at once if it likes, and reads the
result: where the image is, and what is still wrong with it. A prompt that cannot be drawn is returned as an error that
the agent can act upon.
"""

from __future__ import annotations

from langchain.agents import create_agent
from langchain_core.messages import AIMessage, ToolMessage
from offline import arguments, guarded, language_model

from gems import as_tool


def main() -> None:
    """Draw what the request of the command line asks for."""
    parser = arguments(__doc__)
    parser.add_argument("request", nargs="?", default="I need a picture of two red cars and one of a green dog.")
    args = parser.parse_args()

    draw = as_tool(settings={"seed": args.seed, "max_rounds": 3})
    calls = [
        {"name": draw.name, "args": {"prompt": prompt}, "id": f"call_{n}"}
        for n, prompt in enumerate(("two red cars", "a green dog"))
    ]
    model = language_model(args.mllm, AIMessage("", tool_calls=calls), AIMessage("Both are drawn; see above."))
    agent = create_agent(model, [draw], system_prompt="You draw what the user needs, and say where it is.")

    for update in agent.stream({"messages": [("user", args.request)]}, stream_mode="updates"):
        for step in update.values():
            for message in step["messages"]:
                if isinstance(message, ToolMessage):
                    image = message.artifact["image"].uri if message.artifact else "no image"
                    print(f"{message.status}: {image}\n  {message.text}")
                elif message.text:
                    print(message.text)


if __name__ == "__main__":
    guarded(main)

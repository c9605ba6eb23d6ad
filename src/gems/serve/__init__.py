"""The agent as a service: LangServe, an OpenAI-compatible images endpoint, and runs that survive a crash."""

"""Skills from runs: contrasts between prompts, drafts, trials, and the shelf of what is in use."""

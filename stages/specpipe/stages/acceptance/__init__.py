"""All that follows from p and q: measures, replay, tests against chance, draft vocabulary."""

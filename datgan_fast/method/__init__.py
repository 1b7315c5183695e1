"""The paper's discriminator step, its formulas, and the fast computation that equals it. Needs torch only."""

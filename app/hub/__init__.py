"""Finding, downloading and verifying model files. Knows neither Qt nor the engine's backends."""

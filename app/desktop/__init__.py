"""The window: Qt widgets, view models, theming. The only place that imports PySide6."""

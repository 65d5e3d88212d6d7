//! A stack of named undo steps.

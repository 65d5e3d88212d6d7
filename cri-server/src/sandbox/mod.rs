//! CRI sandboxes: one owner task each.

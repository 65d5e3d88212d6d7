//! Every unsafe block of the machine, guest and stdio modules.

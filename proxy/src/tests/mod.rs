//! Calls against a scripted broker.

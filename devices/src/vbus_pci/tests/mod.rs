//! Tests of the connector, as a guest sees it.

mod channels;
mod events;
mod hostile;
mod reset;
mod setup;
mod uplinks;
mod verbs;

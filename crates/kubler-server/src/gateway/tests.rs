mod upstream;
mod world;

mod artifacts;
mod bounds;
mod guardrails;
mod load;
mod passing;
mod protobuf;
mod refusing;
mod streams;
mod tunnels;

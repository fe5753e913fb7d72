mod upstream;
mod world;

mod artifacts;
mod bounds;
mod guardrails;
mod kubectl;
mod lab;
mod load;
mod passing;
mod protobuf;
mod refusing;
mod streams;
mod tunnels;

mod upstream;
mod world;

mod bounds;
mod passing;
mod protobuf;
mod refusing;
mod streams;

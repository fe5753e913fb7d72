mod upstream;
mod world;

mod bounds;
mod kubectl;
mod lab;
mod load;
mod passing;
mod protobuf;
mod refusing;
mod streams;
mod tunnels;

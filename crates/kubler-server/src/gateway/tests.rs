mod upstream;
mod world;

mod passing;
mod refusing;
mod streams;

//! SPDY/3.1, as far as it is carried: where frames begin and end.

//! Attention over chains of key runs. What one query row gets depends on its own position and chain alone:
//! - a product is the kernel's sum over the head's dimensions, then scaled;
//! - the maximum is exact; the exponentials are summed in 16 lanes (lane = position mod 16), which are added pairwise;
//! - the pattern is normalised, then mixed with the values in blocks of 192 positions whose sums are added in order to 0.
//!
//! Keys that a query does not see count as zeros there, which changes no bit of a sum that starts at +0.

mod backward;
mod forward;
mod panels;
mod plan;

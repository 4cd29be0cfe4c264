//! x
use forebay_model::log::*;use forebay_model::search::*;
fn main(){
 let n:usize=std::env::args().nth(1).and_then(|x|x.parse().ok()).unwrap_or(2_000_000);
 for (name,s) in [("base",Scope::BASE),("wipe",Scope{wipes:1,..Scope::BASE}),("b3",Scope{brokers:3,values:1,..Scope::BASE})]{
  let o=Search{states_max:n,owed:Some("no way to an owner")}.run(&Log{scope:s,mutant:None});
  println!("{name} {:?} {} {} {} {:?}",o.end,o.states,o.transitions,o.depth,o.took);
 }
}

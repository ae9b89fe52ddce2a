//! Text that the programs read: a VM's configuration, the state of a daemon, and what is said on a VM's control
//! socket. What is understood is said again in the same way, and means the same.
#![no_main]

use alacrity::config::VmConfig;
use alacrity::control_socket::{Answer, Request};
use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use vbus::state::State;

#[derive(Debug, Arbitrary)]
enum Input<'a> {
    Config(&'a str),
    State(&'a str),
    Request(&'a [u8]),
    Answer(&'a [u8]),
}

fuzz_target!(|input: Input<'_>| {
    match input {
        Input::Config(text) => {
            if let Ok(config) = VmConfig::from_toml(text) {
                let is_valid = config.validate().is_ok();
                let text = toml::to_string(&config).unwrap();
                let again = VmConfig::from_toml(&text).unwrap();
                assert_eq!(again, config);
                assert_eq!(again.validate().is_ok(), is_valid);
            }
        }
        Input::State(text) => {
            if let Ok(state) = toml::from_str::<State>(text) {
                let text = toml::to_string(&state).unwrap();
                assert_eq!(toml::from_str::<State>(&text).unwrap(), state);
            }
        }
        Input::Request(line) => {
            if let Ok(request) = Request::from_line(line) {
                let line = request.to_line().unwrap();
                assert_eq!(Request::from_line(line.as_bytes()).unwrap(), request);
            }
        }
        Input::Answer(line) => {
            if let Ok(answer) = Answer::from_line(line) {
                let line = answer.into_line().unwrap();
                Answer::from_line(line.as_bytes()).unwrap();
            }
        }
    }
});

//! The alert rules are judged by Prometheus' own tool: they parse, and they fire on what they are about.

use std::process::Command;

/// Where `promtool` is: `./dev test` installs it. Without it, and without CI, the test says so and returns.
fn promtool(arguments: &[&str]) {
    match Command::new("promtool").args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output() {
        Ok(output) => assert!(
            output.status.success(),
            "promtool {arguments:?}:\n{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        ),
        Err(error) if std::env::var("CI").as_deref() == Ok("true") => {
            panic!("promtool: {error}: with CI=true a test that needs a tool fails")
        }
        Err(error) => println!("skipped: promtool: {error}"),
    }
}

#[test]
fn the_alert_rules_parse_and_fire() {
    promtool(&["check", "config", "config/prometheus/prometheus.yml"]);
    promtool(&["check", "rules", "config/prometheus/alerts.yml"]);
    promtool(&["test", "rules", "config/prometheus/alerts.test.yml"]);
}

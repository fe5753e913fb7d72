//! `kubler policy`: what the server would say, asked of its files. Needs no server.

mod refusals;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use kubler_core::configuration::Configuration;
use kubler_core::policy::{self, Action, Checked, Explanation, Question, Subject, TestReport};

use crate::arguments::{Connection, Format};
use crate::commands::ledger::records::is_job_id;
use crate::exit::{Exit, Failure, Outcome};
use crate::output;
use crate::variables;

/// What policy files end in.
const EXTENSION: &str = "cedar";

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Read the policies as the server does, and name every fault.
    Check(Files),
    /// Run golden cases: what the policies are expected to say.
    Test(Test),
    /// Say whether a token or its claims would be allowed, and why; or why a job was refused.
    Explain(Explain),
}

#[derive(Debug, Args)]
pub struct Files {
    /// The server's configuration; policies are where it says.
    #[arg(
        long = "config",
        alias = "configuration",
        value_name = "FILE",
        env = variables::KUBLER_CONFIG,
        hide_env_values = true,
        default_value = "kubler.yaml"
    )]
    configuration: PathBuf,
}

#[derive(Debug, Args)]
pub struct Test {
    #[command(flatten)]
    files: Files,
    /// Files of golden cases.
    #[arg(required = true, value_name = "FILE")]
    cases: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub struct Explain {
    #[command(flatten)]
    files: Files,
    /// File with a token, or with the JSON of its claims; `-` is standard input. Or the id of a job: what it was refused,
    /// from the server's ledger, which only operators may read (`--server`, `--client-certificate`, `--client-key`).
    #[arg(
        value_name = "FILE_OR_JOB",
        required_unless_present = "operator",
        conflicts_with = "operator"
    )]
    claims: Option<PathBuf>,
    /// Ask for the operator of this name instead.
    #[arg(long, value_name = "NAME")]
    operator: Option<String>,
    /// What it would do, such as `create_environment`.
    #[arg(long, value_name = "ACTION", default_value = "create_environment", value_parser = action)]
    action: Action,
    /// With which profile.
    #[arg(long, value_name = "PROFILE")]
    profile: Option<String>,
}

fn action(word: &str) -> Result<Action, String> {
    Action::from_word(word).ok_or_else(|| {
        let known: Vec<_> = Action::ALL.iter().map(|action| action.as_str()).collect();
        format!("use one of {}", known.join(", "))
    })
}

/// Runs the command. Returns how to end.
pub fn run(command: &Command, connection: &Connection, format: Format) -> Outcome<Exit> {
    match command {
        Command::Check(files) => {
            let (checked, _) = load(files)?;
            match format {
                Format::Json => output::json(
                    &serde_json::json!({ "digest": checked.set.digest(), "policies": checked.policies.len() }),
                )?,
                Format::Text => output::text(&checked.to_string())?,
            }
            Ok(Exit::Done)
        }
        Command::Test(test) => self::test(test, format),
        Command::Explain(arguments) => match job(arguments) {
            Some(job) => refusals::run(job, &arguments.files, connection, format),
            None => self::explained(arguments, format),
        },
    }
}

/// The job that is meant: an id that is no file.
fn job(arguments: &Explain) -> Option<&str> {
    let text = arguments.claims.as_ref()?.to_str()?;
    (is_job_id(text) && !Path::new(text).exists()).then_some(text)
}

fn test(test: &Test, format: Format) -> Outcome<Exit> {
    let (checked, configuration) = load(&test.files)?;
    let mut reports = Vec::new();
    for path in &test.cases {
        let text = read(path)
            .map_err(|failure| failure.hint("give files of golden cases; see docs/policy.md"))?;
        let report = policy::test(
            &checked.set,
            &configuration,
            &path.display().to_string(),
            &text,
        )
        .map_err(|fault| Failure::usage(fault.to_string()).hint(fault.hint.clone()))?;
        reports.push(report);
    }
    match format {
        Format::Json => output::json(&reports)?,
        Format::Text => output::text(
            reports
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join("\n")
                .trim_end(),
        )?,
    }
    Ok(if reports.iter().all(TestReport::passed) {
        Exit::Done
    } else {
        Exit::Found
    })
}

fn explained(arguments: &Explain, format: Format) -> Outcome<Exit> {
    let (checked, configuration) = load(&arguments.files)?;
    let subject = match (&arguments.operator, &arguments.claims) {
        (Some(name), _) => Subject::Operator(name.clone()),
        (None, Some(path)) => Subject::Claims(read(path).map_err(|failure| {
            failure.hint(
                "give a file with a token, or with the JSON of its claims; `-` is standard input",
            )
        })?),
        (None, None) => return Err(Failure::usage("there is nobody to ask for")),
    };
    let question = Question {
        action: arguments.action,
        profile: arguments.profile.clone(),
        environment: None,
    };
    let explanation = policy::explain(&checked.set, &configuration, &subject, &question)
        .map_err(|fault| Failure::usage(fault.message.clone()).hint(fault.hint.clone()))?;
    match format {
        Format::Json => output::json(&explanation)?,
        Format::Text => output::text(text(&explanation).trim_end())?,
    }
    Ok(if explanation.allowed {
        Exit::Done
    } else {
        Exit::Denied
    })
}

fn text(explanation: &Explanation) -> String {
    let mut text = format!(
        "{}: `{}` on {}\n",
        if explanation.allowed {
            "allowed"
        } else {
            "denied"
        },
        explanation.action.as_str(),
        explanation.target
    );
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(text, "{name}: {}", output::plain(value));
    };
    if !explanation.policies.is_empty() {
        line("decided by", &explanation.policies.join(", "));
    }
    if let Some(detail) = &explanation.detail {
        line("detail", detail);
    }
    for miss in &explanation.closest {
        line("close", &miss.to_string());
    }
    for (name, value) in &explanation.caller {
        line(&format!("caller.{name}"), value);
    }
    for (name, value) in &explanation.resource {
        line(&format!("target.{name}"), value);
    }
    for caveat in &explanation.caveats {
        line("note", caveat);
    }
    if let Some(hint) = &explanation.hint {
        line("hint", hint);
    }
    text
}

fn load(files: &Files) -> Outcome<(Checked, Configuration)> {
    let path = &files.configuration;
    let text = read(path).map_err(|failure| {
        failure.hint(
            "name the server's configuration with `--config FILE`; `kubler-server init` writes it",
        )
    })?;
    let configuration: Configuration = serde_saphyr::from_str(&text).map_err(|error| {
        let message = format!("`{}` is not a configuration: {error}", path.display());
        let hint = if ["u64", "u32", "usize"].iter().any(|kind| message.contains(kind)) {
            "numbers stand without a unit, in what their key ends in: `lease_seconds: 1800`, `memory_bytes_max: 536870912`; `kubler-server schema` prints every key"
        } else {
            "`kubler-server schema` prints every key"
        };
        Failure::usage(message).hint(hint)
    })?;
    let faults = configuration.faults();
    if !faults.is_empty() {
        let lines: Vec<_> = faults
            .iter()
            .map(|fault| format!("  {fault}\n    hint: {}", fault.hint))
            .collect();
        let (path, count) = (path.display(), counted(faults.len()));
        return Err(
            Failure::usage(format!("`{path}` has {count}:\n{}", lines.join("\n")))
                .hint("`kubler-server check` also reads what the configuration names"),
        );
    }
    let folder = path
        .parent()
        .unwrap_or_else(|| Path::new(""))
        .join(&configuration.policies);
    let checked = policy::check(&policies(&folder)?, &configuration).map_err(|faults| {
        let lines: Vec<_> = faults
            .iter()
            .map(|fault| format!("  {fault}\n    hint: {}", fault.hint))
            .collect();
        let message = format!(
            "the policies have {}:\n{}",
            counted(faults.len()),
            lines.join("\n")
        );
        Failure::new(Exit::Found, message)
    })?;
    Ok((checked, configuration))
}

fn counted(faults: usize) -> String {
    let s = if faults == 1 { "" } else { "s" };
    format!("{faults} fault{s}")
}

/// The texts of the folder's own `*.cedar` files, by name.
fn policies(folder: &Path) -> Outcome<BTreeMap<String, String>> {
    let entries = std::fs::read_dir(folder).map_err(|error| {
        Failure::usage(format!(
            "cannot read the policies in `{}`: {error}",
            folder.display()
        ))
        .hint(
            "`policies` in the configuration names their folder; relative paths count from its own",
        )
    })?;
    let mut texts = BTreeMap::new();
    for entry in entries {
        let path = entry
            .map_err(|error| Failure::io("read the policies", &error))?
            .path();
        let name = path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        if path
            .extension()
            .is_some_and(|extension| extension == EXTENSION)
            && !name.starts_with('.')
        {
            texts.insert(name, read(&path)?);
        }
    }
    Ok(texts)
}

fn read(path: &Path) -> Outcome<String> {
    let result = if path == Path::new("-") {
        let mut text = String::new();
        std::io::stdin()
            .lock()
            .read_to_string(&mut text)
            .map(|_| text)
    } else {
        std::fs::read_to_string(path)
    };
    result.map_err(|error| Failure::usage(format!("cannot read `{}`: {error}", path.display())))
}

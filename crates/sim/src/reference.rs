//! The reference's own check, asked about a sample of the states (O4, M2).
//!
//! A process for each answer, so it is asked rarely: about one state in a thousand, and never for more than a share of the
//! time. Where the program is not on PATH nothing is asked, and the figures say so.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::config::DataPlace;
use crate::image::Built;
use crate::judge::Failure;
use crate::pool::{Pool, SECTOR, ZERO};
use crate::timeline::Image;

/// Most of the time that goes into asking.
const SHARE_MAX: f64 = 0.1;

/// `qemu-img` and a directory for what it is shown.
pub struct Reference {
    directory: PathBuf,
    began: Instant,
    spent: Duration,
    /// States it was asked about.
    pub asked: u64,
}

impl Reference {
    /// The program on PATH, if it is there and can be run.
    pub fn find(directory: &Path) -> Option<Self> {
        let mut version = Command::new("qemu-img");
        version.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
        let works = version.status().is_ok_and(|status| status.success());
        let directory = directory.join(format!("reference-{}", std::process::id()));
        (works && fs::create_dir_all(&directory).is_ok()).then(|| Self {
            directory,
            began: Instant::now(),
            spent: Duration::ZERO,
            asked: 0,
        })
    }

    /// Asks about a state, unless asking took too much time already. `verdict` is what the independent checker expects
    /// the exit status to be.
    ///
    /// # Errors
    /// When the reference says something else, or finds a corruption (M2).
    pub fn compare(
        &mut self,
        image: &Image,
        place: DataPlace,
        built: &Built,
        pool: &Pool,
        verdict: Option<i32>,
    ) -> Result<(), Failure> {
        let Some(verdict) = verdict else { return Ok(()) };
        if self.spent.as_secs_f64() > SHARE_MAX * self.began.elapsed().as_secs_f64() {
            return Ok(());
        }
        let began = Instant::now();
        let answer = self.ask(image, place, built, pool);
        self.spent += began.elapsed();
        let (status, text) =
            answer.map_err(|e| Failure::new("O4", format!("the reference cannot be asked: {e}")))?;
        self.asked += 1;
        if status == Some(verdict) && verdict != 2 {
            return Ok(());
        }
        let what = format!("the reference's check ends with {status:?}, {verdict} expected: {}", text.trim());
        Err(Failure::new("O4", what))
    }

    fn ask(
        &self,
        image: &Image,
        place: DataPlace,
        built: &Built,
        pool: &Pool,
    ) -> std::io::Result<(Option<i32>, String)> {
        store(&self.directory.join("image"), image, pool)?;
        let (_, data) = image.parts(place);
        let len = (data.len() * SECTOR) as u64;
        store(&self.directory.join("data"), &Image { sectors: data.to_vec(), len }, pool)?;
        if built.backing.is_some() {
            // The images name it so, beside them.
            store(&self.directory.join("backing"), &built.backing_file, pool)?;
        }
        let output = Command::new("qemu-img")
            .args(["check", "-f", "qcow2", "image"])
            .current_dir(&self.directory)
            .output()?;
        let text =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        Ok((output.status.code(), text))
    }
}

impl Drop for Reference {
    fn drop(&mut self) {
        // What stays behind is only a file of the last question.
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn store(path: &Path, image: &Image, pool: &Pool) -> std::io::Result<()> {
    let file = File::create(path)?;
    for (sector, content) in (0u64..).zip(&image.sectors).filter(|(_, content)| **content != ZERO) {
        file.write_all_at(pool.bytes(*content), sector * SECTOR as u64)?;
    }
    file.set_len(image.len)
}

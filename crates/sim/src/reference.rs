//! The reference's own check, asked about a sample of the states (O4, M2).
//!
//! A process for each answer, so it is asked rarely, and never for more than a share of the time. But its verdict depends
//! on an image's metadata and length only: it reads the structures that the header leads to, all of which the independent
//! checker looks at as well, and no guest's data. So what is drawn is *metadata*, by a hash of everything that the checker
//! looked at, and the verdict stands for every state with the same: it is compared with the checker's verdict on each.
//! Where the program is not on PATH nothing is asked, and the figures say so.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::config::DataPlace;
use crate::image::Built;
use crate::judge::Failure;
use crate::pool::{HashIndex, Pool, SECTOR, ZERO};
use crate::timeline::Image;

/// Most of the time that goes into asking.
const SHARE_MAX: f64 = 0.1;
/// One in so many is drawn: more than the tenth of a percent that is asked for, since the time may not suffice for all.
const DRAWN_ONE_IN: u64 = 600;

/// `qemu-img` and a directory for what it is shown.
pub struct Reference {
    directory: PathBuf,
    began: Instant,
    spent: Duration,
    /// Exit status by metadata.
    known: HashIndex<Option<i32>>,
    /// How often it was asked.
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
            known: HashIndex::default(),
            asked: 0,
        })
    }

    /// Compares its verdict on this metadata with what the independent checker expects the exit status to be. It is
    /// asked if the metadata is drawn, its verdict is not known yet, and asking took not too much time already. Returns
    /// whether there is a verdict.
    ///
    /// # Errors
    /// When the reference says something else, or finds a corruption (M2).
    pub fn compare(
        &mut self,
        metadata: u64,
        (image, place): (&Image, DataPlace),
        built: &Built,
        pool: &Pool,
        expected: Option<i32>,
    ) -> Result<bool, Failure> {
        let Some(expected) = expected else { return Ok(false) };
        if !metadata.rotate_left(32).is_multiple_of(DRAWN_ONE_IN) {
            return Ok(false);
        }
        let mut text = String::new();
        let status = match self.known.get(&metadata) {
            Some(status) => *status,
            None if self.spent.as_secs_f64() > SHARE_MAX * self.began.elapsed().as_secs_f64() => {
                return Ok(false);
            }
            None => {
                let began = Instant::now();
                let answer = self.ask(image, place, built, pool);
                self.spent += began.elapsed();
                let status;
                (status, text) =
                    answer.map_err(|e| Failure::new("O4", format!("the reference cannot be asked: {e}")))?;
                self.asked += 1;
                self.known.insert(metadata, status);
                status
            }
        };
        if status == Some(expected) && expected != 2 {
            return Ok(true);
        }
        let what =
            format!("the reference's check ends with {status:?}, {expected} expected: {}", text.trim());
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
        let data = Image { sectors: data.to_vec(), len: image.data_len, data_len: 0 };
        store(&self.directory.join("data"), &data, pool)?;
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

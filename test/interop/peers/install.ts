/**
 * Peers that are built from source: once per version and content, into a cache outside the repository ($XDG_CACHE_HOME or ~/.cache, softcvm/peers). A
 * peer that cannot be had says why, and its tests skip.
 */
import { execFile } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, renameSync, rmSync } from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';

export type Peer =
  | { readonly program: string; readonly missing?: undefined }
  | { readonly program?: undefined; readonly missing: string };

export interface Outcome {
  /** undefined: could not be started, or was killed. */
  readonly status: number | undefined;
  readonly output: string;
  readonly errors: string;
}

/** Runs a program to its end; never throws. */
export function run(
  program: string,
  args: readonly string[],
  options: { cwd?: string; env?: Record<string, string>; timeoutMs?: number } = {},
): Promise<Outcome> {
  const { cwd, env = {}, timeoutMs = 60_000 } = options;
  return new Promise((resolve) => {
    const child = execFile(
      program,
      args,
      { ...(cwd !== undefined && { cwd }), env: { ...process.env, ...env }, timeout: timeoutMs },
      (_error, stdout, stderr) =>
        resolve({ status: child.exitCode ?? undefined, output: stdout.trim(), errors: stderr.trim() }),
    );
  });
}

/** More than the slowest build takes on two cores. */
const BUILD_MS = 900_000;

const cache = (): string => join(process.env['XDG_CACHE_HOME'] || join(homedir(), '.cache'), 'softcvm/peers');

/**
 * The program `name` that `build` makes of `sources` (texts that identify it: versions, files), from the cache where it is there. `build` gets an
 * empty folder, in which it leaves bin/`name`, and answers with how its last command ended.
 */
async function built(
  name: string,
  sources: readonly string[],
  build: (folder: string) => Promise<Outcome>,
): Promise<Peer> {
  const hash = createHash('sha256').update(JSON.stringify(sources)).digest('hex').slice(0, 16);
  const home = join(cache(), `${name}-${hash}`);
  const program = join(home, 'bin', name);
  if (existsSync(program)) return { program };
  mkdirSync(cache(), { recursive: true });
  const folder = mkdtempSync(join(cache(), 'build-'));
  try {
    const { status, errors } = await build(folder);
    if (status !== 0) return { missing: `${name} could not be built: ${errors.split('\n').at(-1)}` };
    if (!existsSync(program)) renameSync(folder, home);
    return { program };
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** A Go program of this folder, with the modules that its go.sum pins. */
export async function goPeer(name: string): Promise<Peer> {
  const source = new URL(`./${name}/`, import.meta.url).pathname;
  const version = await run('go', ['version']);
  if (version.status !== 0) return { missing: `go is not installed (for ${name})` };
  const files = readdirSync(source).sort();
  const contents = files.map((file) => `${file}\n${readFileSync(join(source, file), 'utf8')}`);
  return built(name, [version.output, ...contents], (folder) =>
    run('go', ['build', '-o', join(folder, 'bin', name), '.'], {
      cwd: source,
      timeoutMs: BUILD_MS,
    }),
  );
}

/**
 * A program of crates.io, with the dependencies that its own lock file pins. Unoptimised, and with the system's OpenSSL where that can be
 * linked: both for the build's time.
 */
export async function cratePeer(name: string, crateVersion: string): Promise<Peer> {
  const version = await run('cargo', ['--version']);
  if (version.status !== 0) return { missing: `cargo is not installed (for ${name})` };
  const hasOpenssl = (await run('pkg-config', ['--exists', 'openssl'])).status === 0;
  const args = ['install', name, '--version', crateVersion, '--locked', '--debug', '--quiet'];
  return built(name, [version.output, ...args, String(hasOpenssl)], (folder) =>
    run('cargo', [...args, '--root', folder, '--target-dir', join(folder, 'target')], {
      cwd: folder,
      env: {
        CARGO_PROFILE_DEV_DEBUG: '0',
        CARGO_TERM_COLOR: 'never',
        ...(hasOpenssl && { OPENSSL_NO_VENDOR: '1' }),
      },
      timeoutMs: BUILD_MS,
    }).then((outcome) => {
      rmSync(join(folder, 'target'), { recursive: true, force: true });
      return outcome;
    }),
  );
}

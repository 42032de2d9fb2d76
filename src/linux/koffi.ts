/**
 * The FFI library koffi, an optional dependency: loaded when the real kernel is asked for, never before. Only what this room uses
 * is declared, so that the rest of the house compiles and runs without the package.
 *
 * A call through koffi runs on the calling thread and returns when the C function does; `errno()` must be read right after it.
 */
import { createRequire } from 'node:module';

/** What a C function takes and gives: integers (a bigint where a number would not be exact), strings, bytes by their address. */
export type Argument = number | bigint | string | Uint8Array | null;
type Result = number | bigint;

export interface Library {
  func(name: string, result: string, parameters: readonly string[]): (...values: Argument[]) => Result;
}

export interface Koffi {
  /** `null`: the symbols of the running program, libc's among them. */
  load(path: string | null): Library;
  errno(): number;
  /** Where bytes lie; they must stay referenced as long as that is used. */
  address(bytes: Uint8Array): bigint;
  /** Memory at `address` without a copy. Of 4 GiB and more it would abort Node. */
  view(address: number | bigint, bytes: number): ArrayBuffer;
}

/** The real kernel cannot be reached from here; the message says what would help. */
export class RealKernelUnavailable extends Error {
  override readonly name = 'RealKernelUnavailable';
}

let loaded: Koffi | undefined;

/** Throws RealKernelUnavailable: not Linux on x86-64, or no koffi. */
export function loadKoffi(
  require: (name: string) => unknown = createRequire(import.meta.url),
  machine: { platform: string; arch: string } = process,
): Koffi {
  if (machine.platform !== 'linux' || machine.arch !== 'x64') {
    throw new RealKernelUnavailable(
      `the real kernel: got ${machine.platform} on ${machine.arch}, want linux on x64`,
    );
  }
  if (loaded !== undefined) return loaded;
  try {
    loaded = require('koffi') as Koffi;
  } catch (error) {
    throw new RealKernelUnavailable(
      `the real kernel needs the package koffi, an optional dependency that is not installed here: npm install koffi@3.3.4 (${
        error instanceof Error ? error.message.split('\n')[0] : error
      })`,
    );
  }
  return loaded;
}

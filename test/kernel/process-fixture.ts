/** A process on a small host, closed and checked for leaks after each test. */
import { afterEach, expect } from 'vitest';
import { LinuxError, NotImplementedError } from '../../src/base/errors.ts';
import { Trace } from '../../src/base/trace.ts';
import { HostMemory } from '../../src/hardware/memory/host-memory.ts';
import { Process, type ProcessOptions } from '../../src/kernel/process.ts';

const started: { memory: HostMemory; process: Process }[] = [];

afterEach(() => {
  const ended = started.splice(0);
  for (const { process } of ended) process.exit();
  for (const memory of new Set(ended.map((each) => each.memory))) {
    expect(memory.leaks()).toEqual([]);
    memory.close();
  }
});

export function startProcess(options: { bytes?: number } & Partial<ProcessOptions> = {}): {
  memory: HostMemory;
  process: Process;
} {
  const memory =
    options.memory ?? HostMemory.create({ bytes: options.bytes ?? 0x1000000, trace: new Trace() });
  const process = new Process({
    openDevice: () => {
      throw new NotImplementedError('/dev/kvm');
    },
    ...options,
    memory,
  });
  started.push({ memory, process });
  return { memory, process };
}

/** The errno's name of a call that must fail, with `/SIGNAL` where it has one. */
export function failure(call: () => unknown): string {
  try {
    call();
  } catch (error) {
    if (error instanceof LinuxError) return error.signal ? `${error.code}/${error.signal}` : error.code;
    throw error;
  }
  return 'OK';
}

/** The errno of a call that must fail; 0: it did not. */
export function errnoOf(call: () => unknown): number {
  try {
    call();
  } catch (error) {
    if (error instanceof LinuxError) return error.errno;
    throw error;
  }
  return 0;
}

/** A file's byte pattern that tells positions apart. */
export const pattern = (length: number, seed: number): Uint8Array =>
  Uint8Array.from({ length }, (_, i) => (i * 31 + (i >> 8) * 7 + seed) & 0xff);

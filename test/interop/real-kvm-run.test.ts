/** `softcvm run --accel kvm`: guests on the machine's own KVM, as far as that one goes, and a clear end where it does not. */
import { spawnSync } from 'node:child_process';
import { accessSync, constants } from 'node:fs';
import { createRequire } from 'node:module';
import { describe, expect, it } from 'vitest';

const cli = new URL('../../dist/cli.js', import.meta.url).pathname;

function softcvm(...arguments_: string[]) {
  const { status, stdout, stderr } = spawnSync(
    process.execPath,
    [cli, 'run', ...arguments_, '--accel', 'kvm'],
    { encoding: 'utf8', timeout: 60_000 },
  );
  return { status, stdout, stderr };
}

function there(check: () => void): boolean {
  try {
    check();
    return true;
  } catch {
    return false;
  }
}
const real =
  there(() => createRequire(import.meta.url).resolve('koffi')) &&
  there(() => accessSync('/dev/kvm', constants.R_OK | constants.W_OK));
if (!real) console.log('skipped: koffi is not installed, or there is no access to /dev/kvm');

describe.skipIf(!real)('softcvm run --accel kvm', () => {
  it('runs a guest', () => {
    const { status, stdout, stderr } = softcvm('hello', '--type', 'default', '--timeout', '30');
    expect({ status, stderr }).toEqual({ status: 0, stderr: '' });
    expect(stdout).toMatch(/^Hello from a guest: vCPU 0, CPL 0, 64 MiB of RAM, CPU \w+\.\n$/);
  });

  it('counts exits, and says null where the kernel cannot tell', () => {
    const { status, stdout } = softcvm('hello', '--type', 'default', '--timeout', '30', '--json');
    const { exit, exits, instructions, memory } = JSON.parse(stdout);
    expect(status).toBe(0);
    expect(exit).toEqual({ reason: 'debug-exit', code: 0 });
    expect(exits.io).toBeGreaterThan(60);
    expect([instructions, memory.shared_frames]).toEqual([null, null]);
  });

  it('ends at the time-out, even in a guest that this KVM cannot run', () => {
    const { status, stderr } = softcvm('loops-long', '--type', 'default', '--timeout', '1');
    expect([124, 125]).toContain(status);
    expect(stderr).toMatch(
      /^softcvm: (timeout: the guest did not end within 1000 ms: vCPU 0 at rip 0x[0-9a-f]+.*|vCPU 0: KVM internal error: .*)\n$/,
    );
  });

  it.each([
    [['--seed', '1'], '--accel kvm: got --seed, which the real kernel does not have'],
    [['--kernel', '6.12'], '--accel kvm: got --kernel, which the real kernel does not have'],
    [['--gmem-huge'], '--accel kvm: got --gmem-huge, which the real kernel does not have'],
  ])('refuses %s', (options, message) => {
    expect(softcvm('hello', '--type', 'default', ...options)).toEqual({
      ...{ status: 2, stdout: '', stderr: `softcvm: ${message}\n` },
    });
  });

  it('says so when the kernel has no VM with private memory', () => {
    const { status, stdout, stderr } = softcvm('hello', '--timeout', '30');
    if (status === 0) return expect(stdout).toContain('Hello from a guest');
    expect({ status, stdout }).toEqual({ status: 2, stdout: '' });
    expect(stderr).toMatch(
      /^softcvm: --type: got sw-protected: .*this kernel has no VM type 1 \(KVM_CAP_VM_TYPES is 0x[0-9a-f]+\); want default, which every KVM has\n$/,
    );
  });

  it('says that an SNP guest is for our own kernel and chips, whatever this one has', () => {
    expect(softcvm('attester', '--type', 'sev-snp')).toEqual({
      ...{ status: 2, stdout: '' },
      stderr: 'softcvm: --accel: got kvm with --type sev-snp, want softcvm: our chips are our own\n',
    });
  });
});

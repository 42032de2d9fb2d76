/**
 * Debian's OVMF.fd (edk2 2022.11), unmodified. As an SNP guest it is launched with its own metadata and runs SEC with its #VC handler, up to its access of the local APIC
 * with the C-bit, by which it fails on any host with guest_memfd: later versions clear the bit (tianocore/edk2, pull request 5621). As a plain guest it looks for a PC's
 * chipset, which this machine has not, and ends in a triple fault.
 */
import { existsSync, readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { seededEntropy } from '../../src/base/entropy.ts';
import { Chip, createHost } from '../../src/index.ts';

const OVMF = '/usr/share/ovmf/OVMF.fd';
const missing = existsSync(OVMF) ? undefined : `${OVMF} is missing (Debian: ovmf)`;
if (missing !== undefined) console.log(`skipped: ${missing}`);
const MiB = 1048576;

describe.skipIf(missing !== undefined)('Debian’s OVMF', () => {
  it('as an SNP guest runs until it takes the local APIC for private memory', async () => {
    const chip = new Chip({ generation: 'milan', entropy: seededEntropy(1) });
    using host = createHost({ memory: 512 * MiB, chip });
    using vm = host.createVm({
      type: 'sev-snp',
      memory: 64 * MiB,
      irqchip: 'split',
      image: readFileSync(OVMF),
      imageName: 'OVMF.fd',
    });
    const { exit, exits, instructions } = await vm.run({ timeoutMs: 60_000 });
    expect(exit).toEqual({
      reason: 'error',
      code: 125,
      message:
        'vCPU 0: memory fault at gpa 0xfee00000: conversion of 0xfee00000+0x1000 to private: no memory region there; the guest looked for what this machine does not have: PCI host bridge, interrupt controller (8259)',
    });
    expect(exits.hypercall).toBeGreaterThan(0);
    expect(instructions).toBeGreaterThan(100_000);
  });

  it('as a plain guest asks for the devices of a PC, which are named when it goes wrong', async () => {
    using host = createHost({ memory: 512 * MiB });
    using vm = host.createVm({
      type: 'default',
      memory: 64 * MiB,
      irqchip: 'split',
      image: readFileSync(OVMF),
      imageName: 'OVMF.fd',
    });
    const { exit, instructions } = await vm.run({ timeoutMs: 250_000 });
    expect([exit.reason, exit.code]).toEqual(['shutdown', 125]);
    expect(exit.message).toMatch(
      /: triple fault .*; the guest looked for what this machine does not have: CMOS and clock, PCI host bridge, fw_cfg, interrupt controller \(8259\)$/,
    );
    expect(instructions).toBeGreaterThan(100_000_000);
  });
});

/** Firmware that runs, plain and as an SNP guest; and the digests of SNP guests, as reports show them and as a relying party expects them. */
import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { firmwareUpdates, imageUpdates, launchDigest, parseFirmware } from '../../src/attest/index.ts';
import { seededEntropy } from '../../src/base/entropy.ts';
import { Chip, type ChipGeneration, createHost, type VmOptions } from '../../src/index.ts';
import { firmwareImage } from '../attest/firmware-image.ts';

const MiB = 1048576;
const prebuilt = (name: string) => readFileSync(new URL(`../../guests/prebuilt/${name}`, import.meta.url));

async function run(options: VmOptions, generation?: ChipGeneration) {
  const chip = generation === undefined ? {} : { chip: new Chip({ generation, entropy: seededEntropy(5) }) };
  using host = createHost({ memory: 256 * MiB, ...chip });
  using vm = host.createVm({ memory: 16 * MiB, ...options });
  return await vm.run({ timeoutMs: 60_000 });
}

/** 64 KiB that start with a jump to their e000h. */
function romOf(...code: number[]): Uint8Array {
  const image = new Uint8Array(65536);
  image.set(code, 0xe000);
  image.set([0xe9, 0x0d, 0xe0], 0xfff0);
  return image;
}
/** mov dx,3f8h; out dx,al for each letter */
const print = (text: string): number[] => [
  ...[0xba, 0xf8, 0x03],
  ...[...text].flatMap((letter) => [0xb0, letter.charCodeAt(0), 0xee]),
];
/** mov al,n; out f4h,al */
const exit = (code: number): number[] => [0xb0, code, 0xe6, 0xf4];

describe('firmware of a guest that is no SNP guest', () => {
  it.each(['default', 'sw-protected'] as const)('starts in real mode: %s', async (type) => {
    const image = romOf(...print('real'), ...exit(7));
    const { exit: end, console } = await run({ type, image, imageName: 'test.fd' });
    expect([console, end]).toEqual(['real', { reason: 'debug-exit', code: 7 }]);
  });

  it('lies below 1 MiB as well', async () => {
    const image = romOf(...print('low'), ...exit(0));
    // jmp f000:e000
    image.set([0xea, 0x00, 0xe0, 0x00, 0xf0], 0xfff0);
    const { console } = await run({ type: 'default', image, imageName: 'test.fd' });
    expect(console).toBe('low');
  });

  it('is ROM: a write changes nothing', async () => {
    // mov byte cs:[e100h],'!'; mov al,cs:[e100h]; out dx,al
    const write = [0x2e, 0xc6, 0x06, 0x00, 0xe1, 0x21, 0x2e, 0xa0, 0x00, 0xe1, 0xee];
    const image = romOf(...print('='), ...write, ...exit(0));
    image[0xe100] = 0x3f;
    const { console, exits } = await run({ type: 'default', image, imageName: 'test.fd' });
    expect(console).toBe('=?');
    expect(exits.mmio).toBe(1);
  });

  it('finds its signature in EDX', async () => {
    // mov eax,edx; mov dx,3f8h; then four times out dx,al; shr eax,8
    const bytes = [0, 1, 2, 3].flatMap(() => [0xee, 0x66, 0xc1, 0xe8, 0x08]);
    const image = romOf(0x66, 0x89, 0xd0, 0xba, 0xf8, 0x03, ...bytes, ...exit(0));
    const received: number[] = [];
    await run(
      { type: 'default', image, imageName: 'x.fd', onConsole: (text) => received.push(...text) },
      'milan',
    );
    expect(received).toEqual([0x11, 0x0f, 0xa0, 0x00]);
  });

  it('that starts SNP guests says so and ends the run', async () => {
    const { exit: end, console } = await run({
      type: 'default',
      image: prebuilt('snp-hello.fd'),
      imageName: 'snp-hello.fd',
    });
    expect(console).toBe('This firmware starts SNP guests.\n');
    expect(end.code).toBe(1);
  });

  it('asks for a reset, which a machine with a plain guest does not have yet', async () => {
    // mov dx,cf9h; mov al,6; out dx,al
    const image = romOf(0xba, 0xf9, 0x0c, 0xb0, 0x06, 0xee, ...exit(0));
    const { exit: end } = await run({ type: 'default', image, imageName: 'x.fd' });
    expect(end).toMatchObject({
      reason: 'shutdown',
      code: 125,
      message: expect.stringMatching('system reset'),
    });
  });

  it('that looks for devices of a PC and goes wrong has them named', async () => {
    // mov eax,80001c00h; mov dx,cf8h; out dx,eax; in al,71h; in al,21h; in al,80h
    const look = [0x66, 0xb8, 0x00, 0x1c, 0x00, 0x80, 0xba, 0xf8, 0x0c, 0x66, 0xef];
    look.push(0xe4, 0x71, 0xe4, 0x21, 0xe4, 0x80);
    // lidt cs:[e100h], whose limit is 0; ud2
    const lost = romOf(...look, 0x2e, 0x0f, 0x01, 0x1e, 0x00, 0xe1, 0x0f, 0x0b);
    expect((await run({ type: 'default', image: lost, imageName: 'x.fd' })).exit).toEqual({
      reason: 'shutdown',
      code: 125,
      message: expect.stringMatching(
        /triple fault.*; the guest looked for what this machine does not have: CMOS and clock, PCI host bridge, interrupt controller \(8259\)$/,
      ),
    });
    const well = romOf(...look, ...exit(0));
    expect((await run({ type: 'default', image: well, imageName: 'x.fd' })).exit).toEqual({
      reason: 'debug-exit',
      code: 0,
    });
  });

  it('starts more than one vCPU with local APICs alone', async () => {
    const image = romOf(0xf4);
    await expect(run({ type: 'default', image, imageName: 'x.fd', smp: 2 })).rejects.toThrow(
      'smp: got 2, want irqchip split, by which firmware starts all vCPUs but the first',
    );
  });
});

describe('firmware of an SNP guest', () => {
  it.each(['off', 'split'] as const)('starts the guest in it, irqchip %s', async (irqchip) => {
    const {
      exit: end,
      console,
      instructions,
    } = await run(
      { type: 'sev-snp', image: prebuilt('snp-hello.fd'), imageName: 'snp-hello.fd', irqchip, smp: 2 },
      'milan',
    );
    expect(console).toMatch(/^Hello from an SNP guest: 16 MiB of RAM, 2 vCPUs, .*\n/);
    expect(console).toMatch(/snp-hello: all as it should be\n$/);
    expect(end).toEqual({ reason: 'debug-exit', code: 0 });
    expect(instructions).toBeLessThan(1_000_000);
  });

  it('starts the other vCPUs where the guest creates them anew', async () => {
    const { exit: end, console } = await run(
      { type: 'sev-snp', image: prebuilt('snp-smp.fd'), imageName: 'snp-smp.fd', irqchip: 'split', smp: 3 },
      'genoa',
    );
    expect(console).toMatch(/snp-smp: all as it should be\n$/);
    expect(end).toEqual({ reason: 'debug-exit', code: 0 });
  });

  it('cannot be reset', async () => {
    const chip = new Chip({ generation: 'milan', entropy: seededEntropy(5) });
    using host = createHost({ memory: 256 * MiB, chip });
    using vm = host.createVm({
      type: 'sev-snp',
      memory: 16 * MiB,
      image: prebuilt('snp-hello.fd'),
      imageName: 'snp-hello.fd',
    });
    expect(() => vm.machine.reset()).toThrow('cpus are not resettable, terminating');
  });

  it('of a section without RAM is refused, and nothing is left', async () => {
    const image = firmwareImage({ size: 65536, sections: [[0x200_0000, 0x1000, 1]] });
    await expect(run({ type: 'sev-snp', image, imageName: 'x.fd' }, 'milan')).rejects.toThrow(
      'x.fd: SEV metadata: Failed to get HVA for GPA 0x2000000 sz 0x1000',
    );
  });

  it('takes a kernel with kernel-hashes, and neither alone', async () => {
    const image = firmwareImage({ size: 65536 });
    const kernel = { kernel: new Uint8Array(1) };
    const withoutHashTable = prebuilt('attester.fd');
    withoutHashTable[withoutHashTable.indexOf('1f3755723b3a044b', 'hex')]! ^= 1;
    await expect(
      run({ type: 'sev-snp', image, imageName: 'x.fd', snp: { kernel } }, 'milan'),
    ).rejects.toThrow('kernel-hashes: got a kernel, but off, want both');
    await expect(
      run({ type: 'sev-snp', image, imageName: 'x.fd', snp: { guest: { 'kernel-hashes': true } } }, 'milan'),
    ).rejects.toThrow('kernel-hashes: got on without a kernel, want both');
    await expect(
      run(
        {
          type: 'sev-snp',
          image: withoutHashTable,
          imageName: 'attester.fd',
          snp: { guest: { 'kernel-hashes': true }, kernel },
        },
        'milan',
      ),
    ).rejects.toThrow('SEV: kernel specified but guest firmware has no hashes table GUID');
    await expect(
      run(
        {
          type: 'sev-snp',
          image: prebuilt('attester.elf'),
          snp: { guest: { 'kernel-hashes': true }, kernel },
        },
        'milan',
      ),
    ).rejects.toThrow('kernel-hashes: got image, want firmware (.fd)');
  });
});

describe('the measurement in an SNP guest’s report is the expected one', () => {
  const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');
  /** MEASUREMENT is at 90h of a report. */
  const measured = (console: string): string | undefined =>
    /^SNP-REPORT ([0-9a-f]+)$/m.exec(console)?.[1]?.slice(2 * 0x90, 2 * 0xc0);
  it.each<[ChipGeneration, Pick<VmOptions, 'vcpuSignature'>, number, number]>([
    ['milan', {}, 0xa00f11, 1],
    ['genoa', {}, 0xa10f11, 2],
    ['genoa', { vcpuSignature: 0xa10f10 }, 0xa10f10, 1],
    ['turin', { vcpuSignature: 0xb00f00 }, 0xb00f00, 2],
  ])('from firmware: %s, %j, signature %i, %i vCPUs', async (...row) => {
    const [generation, options, vcpuSignature, vcpus] = row;
    const image = prebuilt('attester.fd');
    const { console } = await run(
      { type: 'sev-snp', image, imageName: 'attester.fd', smp: vcpus, ...options },
      generation,
    );
    const updates = await firmwareUpdates({ firmware: parseFirmware(image), vcpus, vcpuSignature });
    expect(measured(console)).toBe(hex(await launchDigest(updates)));
  });

  it('with a kernel’s hashes', async () => {
    const image = prebuilt('attester.fd');
    const kernel = {
      kernel: Buffer.from('a kernel'),
      initrd: Buffer.from('a disk'),
      append: 'console=ttyS0',
    };
    const { console } = await run(
      { type: 'sev-snp', image, imageName: 'attester.fd', snp: { guest: { 'kernel-hashes': true }, kernel } },
      'milan',
    );
    const launch = { firmware: parseFirmware(image), vcpus: 1, vcpuSignature: 0xa00f11 };
    const digest = hex(await launchDigest(await firmwareUpdates({ ...launch, kernel })));
    expect(measured(console)).toBe(digest);
    expect(digest).not.toBe(hex(await launchDigest(await firmwareUpdates(launch))));
  });

  it.each<[ChipGeneration, number]>([
    ['milan', 1],
    ['genoa', 2],
  ])('from an ELF image: %s, %i vCPUs', async (generation, vcpus) => {
    const image = prebuilt('attester.elf');
    const { console } = await run(
      { type: 'sev-snp', image, imageName: 'attester.elf', smp: vcpus },
      generation,
    );
    expect(measured(console)).toBe(hex(await launchDigest(imageUpdates({ image, vcpus }))));
  });
});

import { spawnSync } from 'node:child_process';
import { mkdtempSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { buildSync } from 'esbuild';
import { afterAll, describe, expect, it } from 'vitest';
import { decodeCertificateTable, parseCertificate, parseCrl } from '../../src/attest/index.ts';
import { Authority } from '../../src/authority/authority.ts';
import { StateDirectory } from '../../src/authority/state-directory.ts';
import type { ChipGeneration } from '../../src/hardware/chip.ts';

const PRODUCTS = ['Milan', 'Genoa', 'Turin'] as const;
const generationOf = (product: string): ChipGeneration => product.toLowerCase() as ChipGeneration;
const authority = Authority.seeded(7);
const attributes = (name: { attributes: readonly (readonly [string, string])[] }): string =>
  name.attributes.map((pair) => pair.join('=')).join(' ');
const dn = (cn: string): string =>
  `2.5.4.11=Engineering 2.5.4.6=US 2.5.4.7=Santa Clara 2.5.4.8=CA 2.5.4.10=Advanced Micro Devices 2.5.4.3=${cn}`;

describe.each(PRODUCTS)('certificates of %s', async (product) => {
  const chip = authority.chip(generationOf(product));
  const { leaf, intermediate, ark } = await authority.certificates(chip);
  const vcek = parseCertificate(leaf);
  const ask = parseCertificate(intermediate);
  const root = parseCertificate(ark);
  const loaded = await authority.loadedKey(chip);
  const vlek = parseCertificate(loaded.chain.leaf);
  const asvk = parseCertificate(loaded.chain.intermediate);

  it('have AMD’s names', () => {
    expect(attributes(root.subject)).toBe(dn(`ARK-${product}`));
    expect(attributes(root.issuer)).toBe(dn(`ARK-${product}`));
    expect(attributes(ask.subject)).toBe(dn(`SEV-${product}`));
    expect(attributes(ask.issuer)).toBe(dn(`ARK-${product}`));
    expect(attributes(asvk.subject)).toBe(dn(`SEV-VLEK-${product}`));
    expect(attributes(vcek.subject)).toBe(dn('SEV-VCEK'));
    expect(attributes(vcek.issuer)).toBe(dn(`SEV-${product}`));
    expect(attributes(vlek.subject)).toBe(dn('SEV-VLEK'));
    expect(attributes(vlek.issuer)).toBe(dn(`SEV-VLEK-${product}`));
  });

  it('have AMD’s serial numbers', () => {
    const serials = {
      Milan: ['010000', '010001', '010101'],
      Genoa: ['020000', '020002', '020101'],
      Turin: ['030000', '030001', '030101'],
    };
    expect([root.serial, ask.serial, asvk.serial]).toEqual(serials[product]);
    expect([vcek.serial, vlek.serial]).toEqual(['00', '00']);
  });

  it('say version 3 and RSASSA-PSS with SHA-384, MGF1 with SHA-384, salt 48, trailer 1, twice the same', () => {
    for (const one of [root, ask, asvk, vcek, vlek]) {
      expect(one.version).toBe(3);
      expect(one.namesOneAlgorithm).toBe(true);
      expect(one.signatureAlgorithm).toMatchObject({
        oid: '1.2.840.113549.1.1.10',
        pss: {
          hash: '2.16.840.1.101.3.4.2.2',
          maskHash: '2.16.840.1.101.3.4.2.2',
          saltLength: 48,
          trailer: 1,
        },
      });
    }
  });

  it('have RSA keys of 4096 bits above, P-384 below', () => {
    for (const one of [root, ask, asvk])
      expect(one.publicKey).toMatchObject({ kind: 'RSA', bits: 4096, exponent: 65537 });
    for (const one of [vcek, vlek]) expect(one.publicKey.kind).toBe('P-384');
    expect(Buffer.from(vcek.publicKey.spki)).toEqual(Buffer.from(chip.vcek(chip.reportedTcb).spki));
  });

  it('say who may sign', () => {
    expect([root.isCa, root.pathLength]).toEqual([true, undefined]);
    for (const one of [ask, asvk]) expect([one.isCa, one.pathLength]).toEqual([true, 0]);
    for (const one of [vcek, vlek]) expect(one.isCa).toBe(false);
    expect(root.keyUsage?.flatMap((bit, index) => (bit ? [index] : []))).toEqual([5, 6]);
    expect(ask.keyUsage?.flatMap((bit, index) => (bit ? [index] : []))).toEqual([5]);
  });

  it('last 25, 7 and 7 years', () => {
    const years = ({ notBefore, notAfter }: typeof root): number =>
      notAfter.getUTCFullYear() - notBefore.getUTCFullYear();
    expect([root, ask, asvk, vcek, vlek].map(years)).toEqual([25, 25, 25, 7, 7]);
  });

  it('point to AMD’s revocation lists', () => {
    expect(root.crlUrls).toEqual([`https://kdsintf.amd.com/vcek/v1/${product}/crl`]);
    expect(ask.crlUrls).toEqual([`https://kdsintf.amd.com/vcek/v1/${product}/crl`]);
    expect(asvk.crlUrls).toEqual([`https://kdsintf.amd.com/vlek/v1/${product}/crl`]);
    expect(vcek.crlUrls).toEqual([]);
  });

  it('have AMD’s extensions in AMD’s order, none critical, and AuthorityKeyIdentifier with the mark', () => {
    const amd = '1.3.6.1.4.1.3704.1.';
    const order =
      product === 'Turin'
        ? ['1', '2', '3.9', '3.1', '3.2', '3.3', '3.5', '3.6', '3.7', '3.8', '4']
        : ['1', '2', '3.1', '3.2', '3.4', '3.5', '3.6', '3.7', '3.3', '3.8', '4'];
    expect([...vcek.extensions.keys()]).toEqual([...order.map((suffix) => amd + suffix), '2.5.29.35']);
    expect([...vlek.extensions.keys()]).toEqual([
      ...order.slice(0, -1).map((suffix) => amd + suffix),
      `${amd}5`,
      '2.5.29.35',
    ]);
    expect([...vcek.extensions.values()].some(({ isCritical }) => isCritical)).toBe(false);
  });

  it('name chip, product and provider', () => {
    expect(vcek.amd.hwid).toHaveLength(product === 'Turin' ? 8 : 64);
    expect(Buffer.from(vcek.amd.hwid!)).toEqual(Buffer.from(chip.fuses.id));
    expect(vcek.amd.productName?.split('-')[0]).toBe(product);
    expect(vcek.amd.structVersion).toBe(product === 'Turin' ? 1 : 0);
    expect(vlek.amd).toMatchObject({ productName: product, cspId: 'softcvm.example', hwid: undefined });
  });

  it('all carry the mark that they are not AMD’s', () => {
    expect([root, ask, asvk, vcek, vlek].map(({ isSoftware }) => isSoftware)).toEqual([
      true,
      true,
      true,
      true,
      true,
    ]);
  });

  it('come as a table with GUIDs, together with the revocation list', async () => {
    const entries = decodeCertificateTable(await authority.certificateTable(chip));
    expect(entries.map(({ guid }) => guid)).toEqual([
      '63da758d-e664-4564-adc5-f4b93be8accd',
      '4ab7b379-bbac-4fe4-a02f-05aef327c782',
      'c0b406a4-a803-4952-9743-3fb6014cd0ae',
      '92f81bc3-5811-4d3d-97ff-d19f88dc67ea',
    ]);
    expect(Buffer.from(entries[0]!.bytes)).toEqual(Buffer.from(leaf));
    const vleks = decodeCertificateTable(await authority.certificateTable(chip, 'VLEK'));
    expect(vleks[0]!.guid).toBe('a8074bc2-a25a-483e-aae6-39c045a0b8a1');
    expect(parseCertificate(vleks[0]!.bytes).kind).toBe('VLEK');
    expect(parseCertificate(vleks[1]!.bytes).kind).toBe('ASVK');
  });
});

describe('levels in a VCEK', () => {
  it('are those of the TCB that was asked for', async () => {
    const milan = authority.chip('milan');
    const { amd: byMilan } = parseCertificate(await authority.vcek(milan, 0xd109_0000_0000_0203n));
    const arc = '1.3.6.1.4.1.3704.1.3.';
    const inOrder = (levels: ReadonlyMap<string, number>): (number | undefined)[] =>
      [1, 2, 3, 4, 5, 6, 7, 8, 9].map((suffix) => levels.get(arc + suffix));
    expect(inOrder(byMilan.levels)).toEqual([3, 2, 9, 0, 0, 0, 0, 209, undefined]);
    const turin = authority.chip('turin');
    const { amd } = parseCertificate(await authority.vcek(turin, 0x4c00_0000_0403_0201n));
    expect(inOrder(amd.levels)).toEqual([2, 3, 4, undefined, 0, 0, 0, 76, 1]);
  });
});

describe('a revocation list', () => {
  it('names what was revoked, and counts', async () => {
    const own = Authority.seeded(8);
    expect(parseCrl(await own.crl('Milan'))).toMatchObject({ number: '00', revoked: new Map() });
    own.revoke('Milan', 'ASK');
    own.revoke('Milan', 'ASVK');
    const list = parseCrl(await own.crl('Milan'));
    expect([...list.revoked.keys()]).toEqual(['010001', '010101']);
    expect(list.number).toBe('02');
    expect(attributes(list.issuer)).toBe(dn('ARK-Milan'));
    expect(parseCrl(await own.crl('Genoa')).revoked.size).toBe(0);
  });
});

describe('a seed', () => {
  it('repeats certificates, chips and lists byte for byte', async () => {
    const [one, two] = [Authority.seeded(3), Authority.seeded(3)];
    for (const generation of ['milan', 'turin'] as const) {
      expect(await two.certificateTable(two.chip(generation))).toEqual(
        await one.certificateTable(one.chip(generation)),
      );
      expect(await two.loadedKey(two.chip(generation))).toEqual(await one.loadedKey(one.chip(generation)));
    }
  });

  it('tells chips apart', () => {
    expect(Authority.seeded(3).chip('milan').chipId).not.toEqual(Authority.seeded(4).chip('milan').chipId);
    expect(Authority.seeded(3).chip('milan').fuses.secret).not.toEqual(
      Authority.seeded(3).chip('genoa').fuses.secret,
    );
  });
});

describe('a state directory', () => {
  const path = mkdtempSync(join(tmpdir(), 'softcvm-state-'));
  afterAll(() => rmSync(path, { recursive: true }));

  it('keeps root, chip, versions and revocations', async () => {
    const one = Authority.stored(join(path, 'a'));
    const chip = one.chip('milan');
    const ark = await one.ark('Milan');
    chip.currentTcb = chip.tcbOf({ snp: 30 });
    one.save(chip);
    one.revoke('Milan', 'ASK');

    const two = Authority.stored(join(path, 'a'));
    expect(Buffer.from(await two.ark('Milan'))).toEqual(Buffer.from(ark));
    expect(two.chip('milan').chipId).toEqual(chip.chipId);
    expect(two.chip('milan').currentTcb).toBe(chip.currentTcb);
    expect(two.chip('milan').committedTcb).toBe(chip.committedTcb);
    expect(two.chips()).toHaveLength(1);
    expect(two.findChip('Milan', chip.fuses.id)?.chipId).toEqual(chip.chipId);
    expect(two.findChip('Genoa', chip.fuses.id)).toBeUndefined();
    expect([...parseCrl(await two.crl('Milan')).revoked.keys()]).toEqual(['010001']);
  }, 120_000);

  it('is for its owner alone', () => {
    expect(statSync(join(path, 'a')).mode & 0o777).toBe(0o700);
    for (const file of readdirSync(join(path, 'a/roots'))) {
      expect(statSync(join(path, 'a/roots', file)).mode & 0o777).toBe(0o600);
    }
  });

  it('below a folder in which nobody can make one is refused, and made level by level elsewhere', () => {
    // In a process of its own, with an end: mkdir of several levels at once never returns below /proc (Node 20).
    const source = new URL('../../src/authority/state-directory.ts', import.meta.url).pathname;
    const { outputFiles } = buildSync({
      entryPoints: [source],
      bundle: true,
      platform: 'node',
      write: false,
    });
    const { signal, stderr } = spawnSync(process.execPath, ['-'], {
      input: `${outputFiles[0]!.text}; new StateDirectory('/proc/softcvm/state');`,
      encoding: 'utf8',
      timeout: 20_000,
      killSignal: 'SIGKILL',
    });
    expect(signal).toBeNull();
    expect(stderr).toMatch(/E[A-Z]+: .*\/proc\/softcvm/);

    writeFileSync(join(path, 'file'), '');
    expect(() => new StateDirectory(join(path, 'file'))).toThrow('ENOTDIR');
    for (const _again of [1, 2]) new StateDirectory(join(path, 'c/d/e'));
    expect(readdirSync(join(path, 'c/d/e'))).toEqual(['certificates', 'chips', 'roots']);
    for (const folder of ['c', 'c/d/e', 'c/d/e/chips']) {
      expect(statSync(join(path, folder)).mode & 0o777).toBe(0o700);
    }
  });
});

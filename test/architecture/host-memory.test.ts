/**
 * Only hardware/ touches the raw buffer of host memory; everybody else goes through the memory controller, which shows ciphertext
 * to whom it must. Checked with the compiler's types, so that no spelling of an access escapes.
 */
import { join } from 'node:path';
import ts from 'typescript';
import { expect, it } from 'vitest';

const root = new URL('../..', import.meta.url).pathname;
const RAW = ['wasm', 'bytes', 'words', 'longs'];

/** Places outside src/hardware where `source` reads a raw member of HostMemory. */
function rawAccesses(program: ts.Program): string[] {
  const checker = program.getTypeChecker();
  const found: string[] = [];
  const isRaw = (symbol: ts.Symbol | undefined): boolean =>
    symbol !== undefined &&
    RAW.includes(symbol.name) &&
    (symbol.declarations ?? []).some(
      ({ parent }) => ts.isClassDeclaration(parent) && parent.name?.text === 'HostMemory',
    );
  for (const file of program.getSourceFiles()) {
    if (
      file.isDeclarationFile ||
      !file.fileName.includes('/src/') ||
      file.fileName.includes('/src/hardware/')
    )
      continue;
    const visit = (node: ts.Node): void => {
      let symbol: ts.Symbol | undefined;
      if (ts.isPropertyAccessExpression(node)) symbol = checker.getSymbolAtLocation(node.name);
      else if (ts.isElementAccessExpression(node) && ts.isStringLiteralLike(node.argumentExpression)) {
        symbol = checker.getTypeAtLocation(node.expression).getProperty(node.argumentExpression.text);
      } else if (ts.isBindingElement(node)) {
        const name = node.propertyName ?? node.name;
        if (ts.isIdentifier(name)) symbol = checker.getTypeAtLocation(node.parent).getProperty(name.text);
      }
      if (isRaw(symbol)) {
        const { line } = file.getLineAndCharacterOfPosition(node.getStart());
        found.push(`${file.fileName.replace(root, '')}:${line + 1} ${node.getText()}`);
      }
      node.forEachChild(visit);
    };
    visit(file);
  }
  return found;
}

const options: ts.CompilerOptions = {
  target: ts.ScriptTarget.ES2022,
  module: ts.ModuleKind.NodeNext,
  moduleResolution: ts.ModuleResolutionKind.NodeNext,
  allowImportingTsExtensions: true,
  skipLibCheck: true,
  noEmit: true,
};

it('the raw buffer of host memory is touched by hardware alone', { timeout: 120_000 }, () => {
  const files = ts.sys.readDirectory(join(root, 'src'), ['.ts']);
  const probe = join(root, 'src/kernel/probe-for-this-test.ts');
  const host = ts.createCompilerHost(options);
  const { getSourceFile, fileExists } = host;
  const text = `
    import type { HostMemory } from '../hardware/memory/host-memory.ts';
    export const one = (memory: HostMemory) => memory.bytes[0];
    export const two = (memory: HostMemory) => memory['words'];
    export const three = ({ longs: l }: HostMemory) => l;
    export const four = (other: { bytes: Uint8Array }) => other.bytes;
  `;
  host.fileExists = (path) => path === probe || fileExists(path);
  host.getSourceFile = (path, version, ...rest) =>
    path === probe ? ts.createSourceFile(path, text, version) : getSourceFile(path, version, ...rest);
  const program = ts.createProgram([...files, probe], options, host);
  const found = rawAccesses(program);
  const probed = found.filter((place) => place.startsWith('src/kernel/probe-for-this-test.ts'));
  expect(probed.map((place) => place.replace(/^\S+ /, ''))).toEqual([
    'memory.bytes',
    "memory['words']",
    'longs: l',
  ]);
  expect(found.filter((place) => !probed.includes(place))).toEqual([]);
});
